# syntax=docker/dockerfile:1
#
# Images that stream bundles. Docker has not built them yet: report it if one fails. The lines of the target cpu were run in
# a fresh Debian (boards/image.py).
#
#   docker build --target cpu    -t edgemem:cpu .
#   docker build --target gpu    -t edgemem:gpu .         any x86-64 machine with an NVIDIA GPU
#   docker build --target jetson -t edgemem:jetson .      on a Jetson with JetPack 6
#
# --user gives what is written in the mounted folder to you:
#
#   docker run --rm -i -v "$PWD/demo/beats:/work" edgemem:cpu run bundle < demo/beats/other.csv
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/demo/beats:/work" edgemem:cpu bench bundle --html bench.html
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD/demo/beats:/work" edgemem:gpu bench bundle
#   docker run --rm --runtime nvidia --user "$(id -u):$(id -g)" --group-add video -v "$PWD/demo/beats:/work" \
#       edgemem:jetson bench bundle

ARG CPU_BASE=python:3.11-slim
ARG GPU_BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
ARG JETSON_BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0


# The native operators are compiled here; they are tied to no version of Python, so one wheel serves every image.
FROM ${CPU_BASE} AS wheel
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN PIP_CONSTRAINT=constraints.txt pip wheel --no-deps --wheel-dir /wheel .


FROM ${CPU_BASE} AS cpu-environment
COPY --from=wheel /wheel /wheel
COPY constraints.txt /
RUN python -m venv /opt/edgemem \
    && /opt/edgemem/bin/pip install --no-cache-dir --constraint /constraints.txt \
        "$(echo /wheel/*.whl)[device,report]"

FROM ${CPU_BASE} AS cpu
COPY --from=cpu-environment /opt/edgemem /opt/edgemem
RUN useradd --create-home edgemem
ENV PATH=/opt/edgemem/bin:$PATH HOME=/tmp
WORKDIR /work
USER edgemem
ENTRYPOINT ["edgemem"]


FROM ${GPU_BASE} AS gpu-environment
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheel /wheel
COPY constraints.txt /
RUN python3 -m venv /opt/edgemem \
    && /opt/edgemem/bin/pip install --no-cache-dir --constraint /constraints.txt \
        "$(echo /wheel/*.whl)[device-gpu,tensorrt,report]"

FROM ${GPU_BASE} AS gpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=gpu-environment /opt/edgemem /opt/edgemem
RUN useradd --create-home edgemem
ENV PATH=/opt/edgemem/bin:$PATH HOME=/tmp
WORKDIR /work
USER edgemem
ENTRYPOINT ["edgemem"]


# JetPack's image includes CUDA, cuDNN and TensorRT with its Python module, so the environment sees the system's packages.
# PyPI has no onnxruntime-gpu for aarch64. NVIDIA builds it for Jetson, in its Jetson package index and its Jetson
# containers. Pass the address of that wheel, or use ONNX Runtime on the CPU:
#   docker build --target jetson --build-arg ONNXRUNTIME=https://…/onnxruntime_gpu-…-linux_aarch64.whl .
FROM ${JETSON_BASE} AS jetson-environment
ARG ONNXRUNTIME=onnxruntime
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheel /wheel
COPY constraints.txt /
RUN python3 -m venv --system-site-packages /opt/edgemem \
    && grep --invert-match "^cuda-" /constraints.txt > /jetpack.txt \
    && /opt/edgemem/bin/pip install --no-cache-dir --constraint /jetpack.txt \
        "$(echo /wheel/*.whl)[report]" "${ONNXRUNTIME}" tokenizers "cuda-bindings>=12.6,<13"

FROM ${JETSON_BASE} AS jetson
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=jetson-environment /opt/edgemem /opt/edgemem
RUN useradd --create-home --groups video edgemem
ENV PATH=/opt/edgemem/bin:$PATH HOME=/tmp
WORKDIR /work
USER edgemem
ENTRYPOINT ["edgemem"]
