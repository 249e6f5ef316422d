# The gateway, with the terminal client beside it. No torch, no compiler, and nothing is downloaded at run time.
FROM python:3.12-slim-trixie AS packages

# The vLLM that this gateway stands before, and the transformers which that vLLM is installed with: both render the
# model's chat template, and only the same release is sure to count the same. Empty: the one known for that vLLM.
ARG VLLM_VERSION=0.16.0
ARG TRANSFORMERS_VERSION=

WORKDIR /build
COPY requirements.txt ./
COPY client/requirements.txt client/
# hadolint ignore=SC2086
RUN case "${TRANSFORMERS_VERSION:-vllm-$VLLM_VERSION}" in \
        vllm-0.14.*|vllm-0.15.*|vllm-0.16.*) pins="transformers==4.57.6 tokenizers==0.22.2" ;; \
        vllm-0.32.*) pins="transformers==5.19.0 tokenizers==0.23.3" ;; \
        vllm-*) echo "Для vLLM $VLLM_VERSION задайте в .env TRANSFORMERS_VERSION: версию, с которой он ставится." >&2; exit 1 ;; \
        *) pins="transformers==$TRANSFORMERS_VERSION" ;; \
    esac \
    && sed -i -E "/^(transformers|tokenizers)==/d" requirements.txt \
    && python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir $pins -r requirements.txt -r client/requirements.txt

FROM python:3.12-slim-trixie

RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp gateway
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
COPY app app
COPY client client

ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1
# A checkout may be its owner's alone.
RUN chmod -R a+rX app client && python -m compileall -q app client

USER 10001:10001
EXPOSE 8080
# Not urllib: where Docker gives containers an HTTP_PROXY, urllib would ask the proxy for our own address.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8080, timeout=4); c.request('GET', '/health'); assert c.getresponse().status == 200"]
CMD ["python", "-m", "app", "--host", "0.0.0.0", "--port", "8080"]
