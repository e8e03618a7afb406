"""A git repository that somebody prepared: importing it runs nothing that it names, and follows nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from museworkd.client import git_process
from museworkd.client.errors import ClientError, IntegrityError
from museworkd.client.git_reader import GitReader
from tests.git_histories import FastImport, bundle, git, ordinary
from tests.servers import clean_environment, museworkd

PROGRAMS = [
    "core.alternateRefsCommand", "core.askPass", "core.editor", "core.fsmonitor", "core.gitProxy", "core.pager",
    "core.sshCommand", "credential.helper", "diff.external", "diff.evil.command", "diff.evil.textconv",
    "filter.evil.clean", "filter.evil.process", "filter.evil.smudge", "gpg.program", "gpg.ssh.program",
    "merge.evil.driver", "pager.cat-file", "pager.config", "pager.diff-tree", "pager.for-each-ref",
    "pager.rev-list", "remote.origin.receivepack", "remote.origin.uploadpack", "sequence.editor",
    "trace2.normalTarget", "uploadpack.packObjectsHook",
]  # fmt: skip
HOOKS = [
    "post-checkout",
    "post-index-change",
    "reference-transaction",
    "fsmonitor-watchman",
    "pre-auto-gc",
    "post-merge",
]


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A work tree's repository in which everything that can name a program names one that leaves a trace."""
    source = FastImport()
    source.commit(
        "main", {b"file": ("100644", b"content\n"), b".gitattributes": ("100644", b"* diff=evil filter=evil\n")}
    )
    bare = source.into(tmp_path / "bare")
    git(tmp_path, "clone", "--quiet", str(bare), "evil")
    evil = tmp_path / "evil"
    trap = evil / "trap"
    trap.write_text(f"#!/bin/sh\necho \"$0 $*\" >> '{tmp_path}/PWNED'\nexit 1\n")
    trap.chmod(0o755)
    for name in PROGRAMS:
        git(evil, "config", name, f"'{trap}'" if "trace2" not in name else f"af_unix:{tmp_path}/PWNED")
    git(evil, "config", "protocol.allow", "always")
    git(evil, "config", "protocol.ext.allow", "always")
    git(evil, "config", "core.hooksPath", str(evil / "hooks"))
    for hooks in (evil / "hooks", evil / ".git" / "hooks"):
        hooks.mkdir(exist_ok=True)
        for name in HOOKS:
            shutil.copy(trap, hooks / name)
    return evil


def without_blob(repository: Path) -> Path:
    """Take a blob away, which a partial clone would fetch."""
    sha = git(repository, "rev-parse", "main:file")
    for pack in (repository / ".git" / "objects" / "pack").glob("*.pack"):
        data = pack.read_bytes()
        for part in pack.parent.glob(f"{pack.stem}.*"):
            part.unlink()
        git(repository, "unpack-objects", "-q", data=data)
    path = repository / ".git" / "objects" / sha[:2] / sha[2:]
    path.unlink(missing_ok=True)
    return repository


def muse(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """Run a command in an environment or a directory of its own."""
    return subprocess.run(
        [sys.executable, "-m", "museworkd.cli.main", *arguments], cwd=cwd, env=clean_environment(**variables),
        capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip


def said(done: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


def test_nothing_that_a_repository_names_is_run(evil: Path, tmp_path: Path, work: Path) -> None:
    git(evil, "config", "core.fsmonitor", str(evil / "trap"))
    (tmp_path / "PWNED").unlink(missing_ok=True)
    for source in (evil, evil / ".git"):
        museworkd("git-import", str(source), str(work / source.name))
        museworkd("verify", str(work / source.name), "--git", str(source))
    assert not (tmp_path / "PWNED").exists(), (tmp_path / "PWNED").read_text()


@pytest.mark.parametrize("url", ["{evil}", "ext::{evil}/trap", "file://{evil}", "ssh://localhost/x", "evil::x"])
@pytest.mark.parametrize("setting", ["extensions.partialClone", "remote.origin.promisor"])
def test_a_partial_clone_is_refused_and_fetches_nothing(
    evil: Path, tmp_path: Path, work: Path, setting: str, url: str
) -> None:
    without_blob(evil)
    git(evil, "config", "remote.origin.url", url.format(evil=evil))
    git(evil, "config", "core.repositoryFormatVersion", "1")
    git(evil, "config", setting, "origin" if setting.startswith("ext") else "true")
    (tmp_path / "PWNED").unlink(missing_ok=True)
    line = said(museworkd("git-import", str(evil), str(work / "here"), check=1))
    assert "is a partial clone" in line
    assert not (tmp_path / "PWNED").exists(), (tmp_path / "PWNED").read_text()
    assert not (work / "here").exists()


@pytest.mark.parametrize("url", ["{evil}", "ext::{evil}/trap"])
def test_also_without_that_refusal_nothing_is_fetched(evil: Path, tmp_path: Path, monkeypatch, url: str) -> None:
    sha = git(evil, "rev-parse", "main:file")
    without_blob(evil)
    git(evil, "config", "remote.origin.url", url.format(evil=evil))
    git(evil, "config", "core.repositoryFormatVersion", "1")
    git(evil, "config", "extensions.partialClone", "origin")
    git(evil, "config", "remote.origin.promisor", "true")
    monkeypatch.setattr(git_process, "_refuse_partial", lambda *_: None)
    (tmp_path / "PWNED").unlink(missing_ok=True)
    with GitReader(evil) as reader, pytest.raises(IntegrityError, match="incomplete"):
        reader.content(sha)
    assert not (tmp_path / "PWNED").exists(), (tmp_path / "PWNED").read_text()


def test_a_bundle_is_opened_without_a_transport(evil: Path, tmp_path: Path, work: Path, monkeypatch) -> None:
    """Neither cloned nor fetched: its pack is indexed in a fresh repository that has no template and no remote."""
    git(tmp_path / "bare", "update-ref", "refs/heads/other", "main")
    source = bundle(tmp_path / "bare", tmp_path / "all.bundle")
    template = tmp_path / "template" / "hooks"
    template.mkdir(parents=True)
    for name in HOOKS:
        shutil.copy(evil / "trap", template / name)
    (work / ".gitconfig").write_text(f"[init]\n\ttemplateDir = {template.parent}\n")
    monkeypatch.setenv("HOME", str(work))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (tmp_path / "PWNED").unlink(missing_ok=True)
    report = json.loads(museworkd("git-import", str(source), str(work / "here"), "--json").stdout)
    assert sorted(report["branches"]) == ["main", "other"]
    assert (work / "here" / ".muse" / "HEAD").read_text() == "main\n"
    museworkd("verify", str(work / "here"), "--git", str(source))
    assert not (tmp_path / "PWNED").exists()


def test_a_file_that_leads_to_a_repository_is_no_bundle(evil: Path, tmp_path: Path, work: Path) -> None:
    (tmp_path / "leads").write_text(f"gitdir: {evil}/.git\n")
    assert "is not a git bundle" in said(museworkd("git-import", str(tmp_path / "leads"), str(work / "a"), check=1))


def test_a_bundle_that_is_cut_or_only_a_part_is_refused(tmp_path: Path, work: Path) -> None:
    source = bundle(ordinary(tmp_path / "git", commits=5), tmp_path / "all.bundle")
    (tmp_path / "cut").write_bytes(source.read_bytes()[:-30])
    assert "is not a whole git bundle" in said(museworkd("git-import", str(tmp_path / "cut"), str(work / "a"), check=1))
    git(tmp_path / "git", "bundle", "create", "--quiet", str(tmp_path / "part"), "main~1..main")
    assert "prerequisite" in said(museworkd("git-import", str(tmp_path / "part"), str(work / "b"), check=1))
    (tmp_path / "filtered").write_bytes(b"# v3 git bundle\n@object-format=sha1\n@filter=blob:none\n\nPACK")
    line = said(museworkd("git-import", str(tmp_path / "filtered"), str(work / "c"), check=1))
    assert "only a part of its repository" in line


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_bundles_of_both_object_formats_are_opened(tmp_path: Path, work: Path, object_format: str) -> None:
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", f"--object-format={object_format}", "git")
    tree = git(tmp_path / "git", "mktree", data=b"")
    commit = git(tmp_path / "git", "commit-tree", "-m", "empty", tree)
    git(tmp_path / "git", "update-ref", "refs/heads/main", commit)
    source = bundle(tmp_path / "git", tmp_path / "all.bundle")
    museworkd("git-import", str(source), str(work / "here"))
    museworkd("verify", str(work / "here"), "--git", str(source))


def test_the_callers_git_variables_redirect_nothing(tmp_path: Path, work: Path) -> None:
    one, other = ordinary(tmp_path / "one", commits=2), ordinary(tmp_path / "other", commits=7)
    done = muse(
        "git-import", str(one), str(work / "here"), "--json",
        GIT_DIR=str(other), GIT_WORK_TREE=str(tmp_path), GIT_OBJECT_DIRECTORY=str(other / "objects"),
        GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="core.bare", GIT_CONFIG_VALUE_0="nonsense", GIT_NAMESPACE="x",
    )  # fmt: skip
    assert json.loads(done.stdout)["commits"] == 2


def test_replaced_and_grafted_objects_are_read_as_they_are(tmp_path: Path, work: Path) -> None:
    source = ordinary(tmp_path / "git", commits=5)
    blob = git(source, "rev-parse", "main:link") if "link" in git(source, "ls-tree", "--name-only", "main") else None
    blob = blob or git(source, "ls-tree", "-r", "main").split()[2]
    git(source, "replace", blob, git(source, "hash-object", "-w", "--stdin", data=b"replaced\n"))
    (source / "info").mkdir(exist_ok=True)
    (source / "info" / "grafts").write_text(git(source, "rev-parse", "main") + "\n")
    report = json.loads(museworkd("git-import", str(source), str(work / "here"), "--json").stdout)
    assert report["commits"] == 5
    museworkd("verify", str(work / "here"), "--git", str(source))


def test_a_repository_of_somebody_else_is_refused_in_gits_own_words(tmp_path: Path, work: Path) -> None:
    source = ordinary(tmp_path / "git", commits=2)
    programs = work / "programs"
    programs.mkdir()
    (programs / "git").write_text('#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec "$REAL_GIT" "$@"\n')
    (programs / "git").chmod(0o755)
    done = muse(
        "git-import", str(source), str(work / "here"),
        PATH=f"{programs}:{os.environ['PATH']}", REAL_GIT=shutil.which("git"), HOME=str(work),
    )  # fmt: skip
    assert done.returncode == 1
    line = said(done)
    assert "detected dubious ownership" in line
    assert "safe.directory" in line


def test_names_that_look_like_options_are_names(tmp_path: Path, work: Path) -> None:
    stream = FastImport()
    mark = stream.commit("main", {b"--output=PWNED": ("100644", b"1"), b"-rf": ("100644", b"2")})
    stream.reset("refs/tags/--output=PWNED", mark)
    stream.into(tmp_path / "--git-dir=x")
    source = tmp_path / "--git-dir=x"
    git(source, "update-ref", "refs/heads/--all", "main")
    shutil.copytree(source, work / "-c")
    bundle(source, work / "--upload-pack=x")
    for number, name in enumerate(["-c", "--upload-pack=x"]):
        done = muse("git-import", "--", name, f"there-{number}", cwd=work)
        assert done.returncode == 0, done.stderr
        assert "'--all': the branch name" in done.stderr
        museworkd("verify", str(work / f"there-{number}"))
    assert not list(tmp_path.rglob("PWNED"))


def test_a_branch_and_a_tag_that_are_not_utf8_are_said(tmp_path: Path, work: Path) -> None:
    source = ordinary(tmp_path / "git", commits=3)
    head = git(source, "rev-parse", "main")
    raw = os.fsencode(source)
    for ref in (b"refs/heads/br\xff", b"refs/tags/v\xff", b"refs/tags/v\xfe"):
        subprocess.run([b"git", b"-C", raw, b"update-ref", ref, head.encode()], check=True)
    subprocess.run([b"git", b"-C", raw, b"symbolic-ref", b"HEAD", b"refs/heads/br\xff"], check=True)
    done = museworkd("git-import", str(source), str(work / "here"))
    assert r"left out: 'br\udcff': a branch name is not valid UTF-8" in done.stderr
    assert "2 tags" in done.stdout
    museworkd("verify", str(work / "here"))
    for branch in ("main", "feature/one", "Feature/Two"):
        git(source, "update-ref", "-d", f"refs/heads/{branch}")
    line = said(museworkd("git-import", str(source), str(work / "there"), check=1))
    assert "no branch with a name that Muse can have" in line


def test_a_source_that_is_no_repository_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClientError, match="is not a git repository"), GitReader(tmp_path / "empty"):
        pass
