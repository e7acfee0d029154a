"""The commands that need Prefect: run, serve, status and lab."""
