# The program with ONNX Runtime's library beside it, and nothing else of Python.
#
#     docker build -t onnx-merge .
#     docker run --rm --network none -u "$(id -u):$(id -g)" -v "$PWD:/work" onnx-merge src.onnx tgt.onnx -o out.onnx --data train.npz
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo install --locked --path . --root /program --features operator-threads
RUN apt-get update && apt-get install -y --no-install-recommends python3 \
    && python3 tests/licences.py --texts /program/THIRD-PARTY-LICENSES.txt

FROM python:3.12-slim-bookworm AS runtime
COPY tests/requirements.txt .
RUN pip install --no-cache-dir --no-deps --target /packages $(grep '^onnxruntime' requirements.txt) \
    && mkdir /runtime && cp /packages/onnxruntime/capi/libonnxruntime.so.* /runtime/ \
    && cp /packages/onnxruntime/LICENSE /packages/onnxruntime/ThirdPartyNotices.txt /runtime/

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends libstdc++6 && rm -rf /var/lib/apt/lists/*
COPY --from=build /program/bin/onnx-merge /usr/local/bin/
COPY --from=build /program/THIRD-PARTY-LICENSES.txt /usr/local/share/doc/onnx-merge/
COPY --from=runtime /runtime /opt/onnxruntime
RUN ln -s /opt/onnxruntime/libonnxruntime.so.* /usr/local/lib/libonnxruntime.so
ENV ORT_DYLIB_PATH=/usr/local/lib/libonnxruntime.so ORT_DISABLE_TELEMETRY=1
WORKDIR /work
ENTRYPOINT ["onnx-merge"]
