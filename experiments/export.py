"""Writes the EMA parameters of a run's newest checkpoint alone, for inference.

    python -m experiments.export --checkpoint=WORKDIR --out=DIR

DIR is then what --checkpoint of `experiments.sample` takes: a quarter of the bytes, and no optimiser.
"""

from pathlib import Path

from absl import flags

from diffax.training import save_export
from experiments.models.loading import load_model
from experiments.run.workdir import check_writable, launch, load_record, usage_errors

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The workdir of a run.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder to write; must not exist.", required=True)


def main(argv):
    """Exports."""
    del argv
    folder, out = Path(CHECKPOINT.value).absolute(), Path(OUT.value).absolute()
    with usage_errors():
        if out.exists():
            raise ValueError(f"out must not exist yet, got {out}")
        check_writable(out.parent, "out")
        model, record = load_model(folder), load_record(folder)[1]
    kept = {key: record.get(key) for key in ("config", "data", "num_classes", "latent", "words")}
    kept["adapted"] = record.get("lora")  # of which base; the adapters are merged
    save_export(out, model.params, {**kept, "step": model.step})
    print(f"EMA parameters of step {model.step} in {out}")


if __name__ == "__main__":
    launch(main)
