"""SAC on HumanoidBench (paper, section 4.3 and Figure 4b): one intervention in the middle of training."""
