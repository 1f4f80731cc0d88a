"""Records shown: tables, pictures, leaderboards."""
