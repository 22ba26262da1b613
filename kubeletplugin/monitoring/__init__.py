"""Shares while they run: read, compared with the driver, told as metrics, steered."""
