# vcd as Pipfile.lock has it, for machines with or without a GPU (the CUDA libraries of torch are in it: about 7 GB).
# Where this was written there is no Docker engine: it has been read, never built.
#
#   docker build -t vcd .
#   docker run --rm --gpus all -v "$PWD/runs:/home/vcd/runs" -v "$HOME/.cache/vcd:/data" vcd train dataset=mnist network=small
#   docker run --rm -v "$PWD/runs:/home/vcd/runs" vcd sample ckpt=digits out=runs/digits
FROM python:3.13-slim

WORKDIR /opt/vcd
COPY Pipfile Pipfile.lock ./
COPY scripts/setup.sh scripts/
# A layer of its own: the code may change without 7 GB being installed again.
RUN PIP_NO_CACHE_DIR=1 bash scripts/setup.sh && rm -rf .tools "$HOME/.cache"
COPY . .

# Pictures are drawn without a screen; data sets are kept in the volume.
ENV PATH=/opt/vcd/.venv/bin:$PATH VCD_DATA=/data MPLBACKEND=Agg PYTHONUNBUFFERED=1
WORKDIR /home/vcd
VOLUME ["/data", "/home/vcd/runs"]
ENTRYPOINT ["vcd"]
CMD ["--help"]
