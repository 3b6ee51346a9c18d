"""How does an image become a row of numbers? The model in memory, its threads, batches and devices. No HTTP."""
