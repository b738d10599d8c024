"""Several processes on one database: forked, spawned, and strangers."""

import children
from by_hand import MODEL

from llama_index_clip_ext import StoreLockedError, create_vector_store

ROWS = 60

# What a parent does with children that it forks: half of them while its other threads search.
FORK = f"""
    import multiprocessing, os, sys, threading, traceback
    from by_hand import MODEL, X, ask, image
    from llama_index_clip_ext import StoreError, StoreLockedError, create_vector_store

    uri, name, children = sys.argv[1], sys.argv[2], int(sys.argv[3])
    store = create_vector_store(MODEL, uri=uri, collection_name=name)
    store.add([image(str(number)) for number in range({ROWS})])
    store.query(ask())  # No thread is to import while another forks: Python's locks stay locked.
    parent = os.getpid()

    def child():
        calls = [
            lambda: store.query(ask()), lambda: store.add([image("a")]), store.count, store.get_ids,
            lambda: store.get_nodes(["1"]), lambda: store.delete("1"), store.clear,
            lambda: store.delete_nodes(["1"]), lambda: store.client,
        ]
        for call in calls:
            try:
                call()
                return "used what it inherited"
            except StoreError as err:
                assert f"was opened in process {{parent}}" in str(err), err
        try:
            with create_vector_store(MODEL, uri=uri, collection_name=name) as own:
                found = len(own.query(ask(top_k=1000)).ids)
            return "its own works" if found == {ROWS} else f"its own found {{found}}"
        except StoreLockedError as err:
            return "locked" if err.pid == parent else f"locked by {{err.pid}}"
        finally:
            store.close()

    def in_a_child(sender):
        sender.send(child())

    stop = threading.Event()
    def search():
        while not stop.is_set():
            assert len(store.query(ask(top_k=1000)).ids) == {ROWS}
    threads = [threading.Thread(target=search) for _ in range(3)]

    context = multiprocessing.get_context("fork")
    for number in range(children):
        if number == children // 2:
            for thread in threads:
                thread.start()
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=in_a_child, args=[sender])
        process.start()
        print(receiver.recv() if receiver.poll(60) else "no answer", flush=True)
        process.join(30)
        if process.exitcode != 0:
            print("ended with", process.exitcode)
        # One that ends as scripts end, with what is registered by atexit.
        if not (pid := os.fork()):
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0

    stop.set()
    for thread in threads:
        thread.join()
    store.add([image("after")])
    print("rows", store.count(), flush=True)
    sys.stdin.read()
    store.close()
"""


def forked(folder, uri, n_children):
    """Fork children from a process; return what they said, and what a stranger finds meanwhile."""
    name = "forked"
    with children.started(folder, FORK, uri, name, n_children, within=200) as process:
        said = []
        while not said or not said[-1].startswith("rows"):
            said.append(process.stdout.readline().strip())
            assert said[-1], f"ended after {said}"
        try:
            with create_vector_store(MODEL, uri=uri, collection_name=name) as store:
                stranger = store.count()
        except StoreLockedError as err:
            stranger = err.pid == process.pid
    return said, stranger


def test_a_forked_child_is_told_to_open_its_own_and_the_file_stays_its_parents(
    tmp_path, tries, tally
):
    """Milvus Lite in the child once unlocked the file as the child ended, under its parent."""
    n_children = tries(short=2, full=20)
    uri = tmp_path / "forked.db"

    said, is_locked = forked(tmp_path, uri, n_children)

    with create_vector_store(MODEL, uri=uri, collection_name="forked") as store:
        left = store.count()
    tally("forked, Milvus Lite", tried=n_children, lost=ROWS + 1 - left, let_in=not is_locked)
    assert said == ["locked"] * n_children + [f"rows {ROWS + 1}"]
    assert is_locked, "a stranger could open what another process has open"
    assert left == ROWS + 1


def test_a_forked_child_opens_a_server_by_itself(server, tmp_path, tries, tally):
    """It once hung, or broke off, over the connection that its parent's threads were using."""
    n_children = tries(short=2, full=20)

    said, left = forked(tmp_path, server, n_children)

    tally("forked, server", tried=n_children, lost=ROWS + 1 - left)
    assert said == ["its own works"] * n_children + [f"rows {ROWS + 1}"]
    assert left == ROWS + 1
