"""`python -m fewbayes`, which is also what `accelerate launch -m fewbayes` starts."""

from fewbayes.cli import main

raise SystemExit(main())
