"""A study's report as people read it: a table in the terminal, a page in the browser."""
