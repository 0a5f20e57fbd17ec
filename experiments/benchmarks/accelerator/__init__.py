"""One command that measures an accelerator: `python -m experiments.benchmark accelerator --out=DIR`.

command     the flags, the list of items, their processes, the output files
worker      one item in a separate process: `rows(context)` yields rows, each written at once
table       the rows as JSON and Markdown, and the line of the README
networks    the four networks whose training steps are measured, with their loss and batch sizes

exam        a  orders, likelihood, a U-Net and a DiT in float32 against the CPU's answer
resume      b  bit-identical resume after SIGTERM; pmap, jit and FSDP on all devices
steps       c  training steps: images/s, share of peak, memory, compile time
torch_steps d  the same networks in PyTorch, eager and compiled
attention   e  cuDNN's attention against XLA's
sampling    f  sampler overhead, and images/s of a 50-call sampler
seeds       g  eight seeds in one program
digits      h  the digits config trained and scored

Items a to g import jax, flax, optax, orbax-checkpoint and numpy (and torch and diffusers where they are installed).
"""
