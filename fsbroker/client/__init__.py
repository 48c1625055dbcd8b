"""What stands between an executor's futures and the spool.

    submit -> submitter -> outbox -> binding -> publishing -> session -> task files
    future <- waiting <- delivery <- outcomes <- session <- result files

    loop        the thread that does this, and the face that executors and futures see
    submitter   function, arguments and resources -> a call with its key; `foreign` where it
                has to wait for futures that only this process knows
    outbox      what was submitted and is not yet accepted
    binding     a call -> what gives its outcome; `deferral`: what others compute already
    publishing  calls -> new task files
    session     the protocol, without threads and futures
    delivery    outcomes -> futures that have ended; `outcomes`: one outcome -> its value
    waiting     the futures that have not ended
    cancelling  futures that their users want no more
    agents      that some run for what waits
    trouble     file calls that fail
    exit        what is done before the interpreter ends

For the command line: `history` (all tasks of a spool), `again` (run once more), `ending`.
"""
