"""Functions that make the content of a checkpoint hostile, in place."""


def put(*path, value):
    """Function that sets an entry of a checkpoint."""

    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def drop(*path):
    """Function that deletes an entry of a checkpoint."""

    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change
