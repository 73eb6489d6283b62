# syntax=docker/dockerfile:1
#
#   docker build --target cpu  -t anomaly .
#   docker build --target cuda -t anomaly:cuda .
#
# The steps are the Makefile's own, and the library comes by the same pinned table
# (internal/ort/library.tsv) as everywhere else.
#
# The service listens on the port of PORT, or 5029: docker run -e PORT=8080 -p 8080:8080 anomaly
# A training without max_seconds gets 570 of them: DeepMed's web app and proxy give up after 600.

FROM golang:1.26-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends make gcc libc6-dev python3-pip && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN make build
RUN make install PREFIX=/out

# UNTESTED, like the target cuda below: the CUDA build of the library, beside the same binary.
FROM build AS build-cuda
RUN make install RUNTIME=cuda PREFIX=/out-cuda

# UNTESTED: written from what the library asks for (CUDA 13, cuDNN 9), and never run on a GPU.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS cuda
COPY --from=build-cuda /out-cuda/ /usr/local/
# The loader finds the providers beside the library, and CUDA's own by its cache.
RUN ldconfig && useradd --system --uid 10001 --create-home anomaly
USER anomaly
WORKDIR /home/anomaly
EXPOSE 5029
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["anomaly", "health"]
ENTRYPOINT ["anomaly"]
CMD ["serve", "--addr", "0.0.0.0", "--default-max-seconds", "570"]

# Last, so that a build without --target is this one.
FROM debian:bookworm-slim AS cpu
COPY --from=build /out/ /usr/local/
RUN useradd --system --uid 10001 --create-home anomaly
USER anomaly
WORKDIR /home/anomaly
EXPOSE 5029
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["anomaly", "health"]
ENTRYPOINT ["anomaly"]
CMD ["serve", "--addr", "0.0.0.0", "--default-max-seconds", "570"]
