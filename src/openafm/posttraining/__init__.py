"""Post-training: SFT, reward model, rejection sampling, DPO, IPO, MDLOO, the committee (AFM, section 4)."""
