"""Which language a file is in, by its name."""

from __future__ import annotations

OTHER = "Other"
_BY_NAME = {
    "cmakelists.txt": "CMake", "dockerfile": "Dockerfile", "containerfile": "Dockerfile", "gnumakefile": "Makefile",
    "makefile": "Makefile", "rakefile": "Ruby", "gemfile": "Ruby", "jenkinsfile": "Groovy", "build": "Starlark",
    "build.bazel": "Starlark", "workspace": "Starlark", "justfile": "Just", "meson.build": "Meson",
}  # fmt: skip
_BY_LANGUAGE = {
    "Ada": "adb ads", "Assembly": "asm s", "Astro": "astro", "AsciiDoc": "adoc asciidoc", "Batch": "bat cmd",
    "Bibliography": "bib", "C": "c h", "C#": "cs csx", "C++": "cc cpp cxx hh hpp hxx ino ipp",
    "CMake": "cmake", "CSS": "css", "CSV": "csv tsv", "CUDA": "cu cuh", "Clojure": "clj cljc cljs edn",
    "CoffeeScript": "coffee", "Common Lisp": "lisp lsp", "Crystal": "cr", "Cython": "pxd pxi pyx", "D": "d",
    "Dart": "dart", "Diff": "diff patch", "Elixir": "ex exs", "Elm": "elm", "Emacs Lisp": "el", "Erlang": "erl hrl",
    "F#": "fs fsi fsx", "Fortran": "f f03 f08 f77 f90 f95 for", "GLSL": "frag glsl vert", "Go": "go",
    "GraphQL": "gql graphql", "Groovy": "gradle groovy", "HCL": "hcl tf tfvars", "HTML": "htm html xhtml",
    "Handlebars": "handlebars hbs", "Haskell": "hs lhs", "INI": "cfg conf ini", "JSON": "json json5 jsonc jsonl",
    "Java": "java", "JavaScript": "cjs js mjs", "Jinja": "j2 jinja jinja2", "Julia": "jl", "Jupyter Notebook": "ipynb",
    "Kotlin": "kt kts", "LaTeX": "cls latex sty tex", "Less": "less", "LilyPond": "ly ily", "Lua": "lua",
    "MATLAB": "mat mlx", "MIDI": "mid midi", "Makefile": "mak mk", "Markdown": "markdown md mdx", "MusicXML": "mxl "
    "musicxml", "Nim": "nim", "Nix": "nix", "OCaml": "ml mli", "Objective-C": "m mm", "PHP": "php phtml",
    "Pascal": "pas pp", "Perl": "pl pm", "PostScript": "eps ps", "PowerShell": "ps1 psd1 psm1", "Prolog": "pro",
    "Protocol Buffers": "proto", "Python": "py pyi pyw", "R": "r rmd", "Racket": "rkt", "Ruby": "gemspec rake rb",
    "Rust": "rs", "SCSS": "sass scss", "SQL": "psql sql", "SVG": "svg", "Scala": "sbt sc scala", "Scheme": "scm ss",
    "Shell": "bash fish ksh sh zsh", "Solidity": "sol", "Starlark": "bzl star", "Svelte": "svelte", "Swift": "swift",
    "SystemVerilog": "sv svh", "TOML": "toml", "TSX": "tsx", "Tcl": "tcl", "Text": "log rst text txt",
    "TypeScript": "cts mts ts", "VHDL": "vhd vhdl", "Verilog": "v vh", "Vim script": "vim", "Visual Basic": "bas vb",
    "Vue": "vue", "WebAssembly": "wasm wat", "XML": "dtd plist xml xsd xsl xslt", "YAML": "yaml yml", "Zig": "zig",
    "Archive": "7z bz2 gz jar rar tar tgz xz zip zst", "Audio": "aac aif aiff flac m4a mp3 ogg opus wav wma",
    "Font": "eot otf ttf woff woff2", "Image": "avif bmp gif heic ico jpeg jpg png psd tif tiff webp",
    "Video": "avi m4v mkv mov mp4 mpeg mpg webm", "Document": "doc docx odp ods odt pdf ppt pptx xls xlsx",
    "Binary": "a bin class dll dylib exe o pyc so",
}  # fmt: skip
_BY_EXTENSION = {ending: language for language, endings in _BY_LANGUAGE.items() for ending in endings.split()}


def language_of(path: str) -> str:
    """Name a file's language, :data:`OTHER` when its name does not tell."""
    name = path.rpartition("/")[2].lower()
    known = _BY_NAME.get(name)
    if known is not None:
        return known
    stem, _, ending = name.rpartition(".")
    return _BY_EXTENSION.get(ending, OTHER) if stem else OTHER
