"""Training. `phase` is the stage, `trainer` turns `loop`, `denoising` computes a step's gradients.

What runs the process: `launch`, `worker`, `guard`, `job`, `origin`, `ranks`, `running`, `threads`,
`memory_use`. What the state is: `state` and its parts `trainable`, `optimizers`, `position`,
`technique`; `checkpoint` and what writes it. What is measured: `logbook`, `records`, `meter`,
`norms`, `memory`, `validation`, `pictures`, `explanation`, `ending`. What is done beside the steps:
`techniques`, one module each.
"""
