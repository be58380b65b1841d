"""Test that the command line trains without torch's compiler, and that nothing else is kept from it."""

import subprocess
import sys

SCRIPT = """
import contextlib, sys
from meari.cli.main import main
sys.argv = ["meari", "--version"]
with contextlib.suppress(SystemExit):
    main()
import torch
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0.0)
weight.sum().backward()
optimizer.step()
print([round(value, 3) for value in weight.tolist()], "torch._dynamo.eval_frame" in sys.modules)
from torch._dynamo.eval_frame import OptimizedModule
print(torch.compile(lambda values: values + 1, backend="eager")(torch.zeros(2)).tolist())
"""


def test_optimizer_steps_without_the_compiler_which_is_there_for_whoever_asks() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[1:] == ["[0.5, 0.5, 0.5] False", "[1.0, 1.0]"], done.stderr
