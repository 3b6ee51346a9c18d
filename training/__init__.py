"""The offline side of TailGuard: images to a bundle. Start reading at trainer.py."""
