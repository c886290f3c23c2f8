"""A study: its file, its database, its loop, its finalists."""
