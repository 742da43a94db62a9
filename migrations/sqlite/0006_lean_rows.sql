-- Rows of entries and tiles get smaller in Postgres at this version. Nothing changes here; both databases count their migrations alike.
SELECT 1;
