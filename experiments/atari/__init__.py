"""High-replay-ratio DQN on Atari (paper, section 4.3 and Figure 4a): one intervention in the middle of training."""
