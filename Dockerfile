# The detection and the page. Nothing is fetched when it runs.
#   docker build --tag deepfake-detect .
#   docker run --rm --network none --volume "$PWD:/data" --user "$(id -u):$(id -g)" deepfake-detect clip.mp4
FROM python:3.13-slim AS build
COPY . /clone
RUN pip install --no-cache-dir uv && sh /clone/docker/install.sh /opt/deepfake-detect

FROM python:3.13-slim
COPY --from=build /opt/deepfake-detect /opt/deepfake-detect
ENV PATH=/opt/deepfake-detect/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
RUN useradd --uid 10001 checker && install --directory --owner checker /data
USER checker
WORKDIR /data
EXPOSE 7860
HEALTHCHECK CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:7860/health', timeout=5)"]
ENTRYPOINT ["deepfake-detect"]
