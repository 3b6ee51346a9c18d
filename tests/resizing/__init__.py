"""How much of an AUROC is an eye for resizing? `python -m tests.resizing.measure RUN --ood FOLDER` measures it."""
