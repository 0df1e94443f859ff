"""How long kernels take on an accelerator, by class, shape and precision: measured curves with few constants."""
