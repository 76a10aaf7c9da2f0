"""The control plane: decides what runs next and what lands."""
