# The server of a user study (docs/user-study.md). Put a proxy with TLS in front of it.
#   docker build -t fewbayes-study .
#   docker run -p 127.0.0.1:8000:8000 -v ./study:/study fewbayes-study --proxy '*'
# With PostgreSQL: ... fewbayes-study --database postgresql+psycopg://USER:PASSWORD@HOST/NAME
FROM python:3.12-slim
WORKDIR /package
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt --index-url https://download.pytorch.org/whl/cpu "torch==2.13.0" \
 && pip install --no-cache-dir -c constraints.txt ".[study,postgresql]" \
 && useradd --uid 1000 study
USER study
EXPOSE 8000
ENTRYPOINT ["fewbayes", "study", "serve", "/study", "--host", "0.0.0.0"]
