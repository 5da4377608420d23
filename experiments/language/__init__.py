"""Continual pretraining of a language model (paper, section 4.2 and Figure 3): one corpus, then new text."""
