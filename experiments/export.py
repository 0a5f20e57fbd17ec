"""Write the averaged parameters of a run for inference, as safetensors and JSON, for `diffax.load`.

    python -m experiments.export --checkpoint=WORKDIR --out=DIR

DIR may also be the --checkpoint of `experiments.sample`. It has a quarter of the bytes of a checkpoint and contains the
whole model: adapters are merged into their base; the autoencoder of a model in latents and the vocabulary of a model of
captions are included. It can be uploaded to the Hugging Face Hub as a model.
"""

from absl import flags

from experiments.run.command import launch, path_of, usage_errors
from experiments.run.loading import latents_of, load, save_export
from experiments.run.workdir import check_writable

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The workdir of a run.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist.", required=True)
AUTOENCODER = flags.DEFINE_string("autoencoder", None, "Folder of the model's autoencoder, if it was moved.")


def main(argv):
    """Load, write."""
    del argv
    # ---------------------------------------------------------------- load: the model, its latent space
    with usage_errors():
        folder, out = path_of("checkpoint", CHECKPOINT.value), path_of("out", OUT.value)
        if out.exists():
            raise ValueError(f"out must not exist yet, got {out}")
        check_writable(out.parent, "out")
        trained = load(folder)
        space = latents_of(trained, AUTOENCODER.value)

    # ---------------------------------------------------------------- write
    save_export(out, trained, trained.params, trained.step, space, trained.record)
    print(f"averaged parameters of step {trained.step} in {out}: diffax.load({OUT.value!r})")


if __name__ == "__main__":
    launch(main)
