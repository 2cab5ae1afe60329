FROM python:3.12-slim
ARG EXTRAS=data
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /jaxcxr
COPY . .
RUN pip install --no-cache-dir -e ".[${EXTRAS}]"
ENTRYPOINT []
CMD ["jaxcxr", "--help"]
