"""The TailGuard service: loads a bundle and answers POST /classify. Never imports torch or training."""
