"""Speed and memory, side by side with the bare tools in one run: ``python -m bench [orders|xml|overhead|memory|start|all]``."""
