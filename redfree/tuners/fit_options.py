"""How a tuner is trained; imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from redfree.validation import Strict, without_defaults


class FitParams(Strict):
    """How a tuner is trained, as far as a suite says; the defaults are the swap paper's.

    Attributes:
        epochs: passes over the training samples.
        batch: images of a step, on all devices together.
        learning_rate: of Adam.
        weight_decay: of Adam, a part of the gradient (`torch.optim.Adam`), not decoupled from it.
        mixed_precision: format of matrix products under autocast; weights are float32.
        validation_part: share of the training samples that is held out to choose the best epoch; 0 takes the last one.
        devices: processes that share a batch, each with its device. CUDA has not been tried: the development machine
            has none.
    """

    epochs: int = Field(default=25, ge=1)
    batch: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=5e-5, ge=0, allow_inf_nan=False)
    # YAML reads a bare `no` as False.
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"], BeforeValidator(lambda given: "no" if given is False else given)
    ] = "no"
    validation_part: float = Field(default=0.0, ge=0, lt=1)
    devices: int = Field(default=1, ge=1)

    @model_serializer(mode="wrap")
    def _keep_run_ids(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), ("devices",))


class FitOptions(FitParams):
    """How a tuner is trained, with what the cell and the machine say.

    Attributes:
        seed: of the order of the samples, of dropout, and of which samples are held out.
        save_every: steps between saved states; None for those of an epoch.
    """

    seed: int = Field(default=0, ge=0)
    save_every: int | None = Field(default=None, ge=1)
