# An image with the page and the deepfake-detect command, see docs/container.md. It does not fetch anything at run time.
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
CMD ["deepfake-detect-page", "--host", "0.0.0.0", "--no-open-browser", "--api"]
