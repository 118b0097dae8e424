"""Lines, tables and errors on a terminal."""
