"""A command with an input file, a buffer and outputs."""

import ndcctools.taskvine as vine

with vine.Manager(port=0) as m:
    words = m.declare_buffer("the cat\nthe dog\nthe end\n")
    with open("script.sh", "w") as file:
        file.write('sort -u words | wc -l > count; echo "$GREETING"; cp words copy\n')
    script = m.declare_file("script.sh")
    with vine.Factory("local", manager=m):
        for number in range(3):
            copy, count = m.declare_temp(), m.declare_buffer()
            task = vine.Task("sh run.sh")
            task.add_input(words, "words")
            task.add_input(script, "run.sh")
            task.add_output(count, "count")
            task.add_output(copy, "copy")
            task.set_env_var("GREETING", f"hello {number}")
            task.set_tag("all")
            m.submit(task)
            done = m.wait_for_tag("all", 120)
            print(done.result, done.exit_code, done.std_output.strip(), int(count.contents()))

# prints: success 0 hello 0 3
# prints: success 0 hello 1 3
# prints: success 0 hello 2 3
