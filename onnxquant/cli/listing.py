"""`onnxquant passes`, `recipes` and `targets`: what there is to choose from."""

from __future__ import annotations


def passes_command() -> None:
    """List the passes, with their options and what each does."""
    import inspect
    from textwrap import indent

    from onnxquant.cli.options import open_console
    from onnxquant.recipes import find_pass, pass_names

    console = open_console()
    for name in pass_names():
        step = find_pass(name)
        console.print(f"[bold]{name}[/bold]")
        console.print(indent(inspect.getdoc(step) or "", "  "), markup=False)
        for option, field in step.model_fields.items():
            default = field.get_default()
            console.print(f"    --set {name}.{option}={list(default) if default == () else default}", markup=False)
        console.print()


def recipes_command() -> None:
    """List the recipes, with the passes each runs."""
    from onnxquant.cli.options import open_console
    from onnxquant.recipes import load_recipe, recipe_names

    console = open_console()
    for name in recipe_names():
        recipe = load_recipe(name)
        console.print(f"[bold]{name}[/bold]: {recipe.description}")
        console.print("  " + ", ".join(table["name"] for table in recipe.passes), markup=False)


def targets_command() -> None:
    """List the targets."""
    from onnxquant.cli.options import open_console
    from onnxquant.targets import load_target, target_names

    console = open_console()
    for name in target_names():
        console.print(f"[bold]{name}[/bold]: {load_target(name).description}")
