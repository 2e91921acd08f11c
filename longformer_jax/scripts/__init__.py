"""The commands longformer-train and longformer-eval; train.py and eval.py of a checkout are the same."""
