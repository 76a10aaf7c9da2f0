"""The proof of the walls: sandboxes that attack themselves, each attack beside a control that shows it can succeed."""
