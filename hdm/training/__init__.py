"""Training. `phase` is the stage, `trainer` turns `loop`, `denoising` computes a step's gradients.

Its rooms: `process`, what runs the process; `state`, what the state is and how it is kept;
`measures`, what is measured; `techniques`, what is done beside the steps, one module each.
"""
