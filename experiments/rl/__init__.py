"""What the domains of reinforcement learning share: replay buffers, an agent's learner and its training."""
