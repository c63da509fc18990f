# vLLM's own image, of the version that this is developed and tested on, and the package on it.
FROM vllm/vllm-openai:v0.32.0

WORKDIR /opt/stream2llm
COPY pyproject.toml README.md LICENSE ./
COPY stream2llm_rag ./stream2llm_rag
# What the image has satisfies the extra `serve` but for small things; vLLM itself must stay as it is. So no version is pinned:
# those that vLLM was built with are the right ones.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[serve,cli]'

# A model's weights are downloaded here at the first start: mount a volume to keep them.
ENV HF_HOME=/models VLLM_NO_USAGE_STATS=1
RUN useradd --create-home --uid 10001 stream2llm && mkdir -p /models && chown stream2llm /models
USER 10001
WORKDIR /home/stream2llm

EXPOSE 8000
# The port opens when the model is loaded; /health answers as long as the engine lives. With another --port, or with encryption,
# name its address: docker run -e STREAM2LLM_HEALTH_URL=...
ENV STREAM2LLM_HEALTH_URL=http://127.0.0.1:8000/health
HEALTHCHECK --start-period=30m --interval=15s --timeout=5s \
    CMD ["python3", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(os.environ['STREAM2LLM_HEALTH_URL'], timeout=4)"]
ENTRYPOINT ["stream2llm", "serve"]
