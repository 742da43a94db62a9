-- SQLite's index of leaf keys becomes a table at this version. Nothing changes here; both databases count their migrations alike.
SELECT 1;
