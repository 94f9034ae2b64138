"""``python -m voxelpool`` says what is installed."""

from voxelpool._config_report import show_config

if __name__ == "__main__":
    print(show_config())
