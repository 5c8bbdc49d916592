"""Every limit of the platform, in one place; each is tested at the limit and one beyond.

Names carry the unit. A limit that an operator may change is a parameter of the template (see `config.py`), not here.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# What a request may carry.
INPUT_BYTES_MAX: Final = MIB
JSON_DEPTH_MAX: Final = 64
FAULTS_NAMED_MAX: Final = 100  # of one request: its refusal names so many and says that there are more
FIELD_NAME_CHARS_MAX: Final = 200  # of a stranger's field in a refusal; the longest path of ours has some 60
FAULT_CHARS_MAX: Final = 1_000  # of the sentence that says what is wrong with a field
DETAIL_CHARS_MAX: Final = 2_000  # of the text that says what is wrong: Step Functions cuts a cause at 32 KiB of JSON
TASK_ID_CHARS_MAX: Final = 128
STATED_TASK_CHARS_MAX: Final = TASK_ID_CHARS_MAX + len(":judge-agent")  # as receipts name a judge's task
ACCOUNT_ID_CHARS_MAX: Final = 255  # OpenID Connect Core 1.0 §2: a `sub` has at most 255 ASCII characters
ACCOUNT_ID_PATTERN: Final = r'^[!-"$-~]+$'  # visible ASCII but '#', which parts the ledger's keys
OWN_ACCOUNT: Final = "me"  # names the caller's own account in a path, so that no account can have it as its id
DOT_SEGMENTS: Final = frozenset({".", ".."})  # no ids: clients and gateways remove them from paths (RFC 3986 §5.2.4)
ACCOUNT_IDS_RESERVED: Final = DOT_SEGMENTS | {OWN_ACCOUNT}
AGENT_NAME_CHARS_MAX: Final = 100
AGENT_DESCRIPTION_CHARS_MAX: Final = 2_000
PAGE_ITEMS_MAX: Final = 100
REASON_CHARS_MAX: Final = 500  # of why an operator did something
PAYOUT_ID_CHARS_MAX: Final = (ACCOUNT_ID_CHARS_MAX + len("#") + TASK_ID_CHARS_MAX) * 4 // 3  # base64 of both names
UNLISTED_AT_ONCE_MAX: Final = 25  # of agents that code of before had listed: writes that one page may make
OWNED_AGENTS_READ_MAX: Final = 10_000  # of one owner, looked through for one that is not retired; some 300 bytes each

# What an answer may carry.
LAMBDA_SYNC_BYTES_MAX: Final = 6_291_556  # Lambda's own limit of a request and of an answer of a synchronous invocation
# An output is shown as text up to this, in the JSON of a Lambda answer, which escapes an HTTP body's JSON once more:
# there a quotation mark takes 4 bytes, a control character 7. The rest of the answer, with a log of 64 KiB of control
# characters, has room beside it, and the base64 of a larger output is shorter.
OUTPUT_TEXT_WIRE_BYTES_MAX: Final = 5 * MIB
AUDIT_DIFFERENCES_SHOWN_MAX: Final = 1_000  # in the audit's answer; all are counted and logged
AUDIT_LINE_CHARS_MAX: Final = 300

# What a verifier reads.
TOKEN_CHARS_MAX: Final = 16 * KIB  # of a receipt or a checkpoint; a receipt has about 2,300
JWKS_KEYS_MAX: Final = 1_000
JWKS_AGE_S_MAX: Final = 5 * 60  # how old a published root may be, here and once more in a client's cache
JWKS_FAILURE_S_MAX: Final = 2  # for how long nobody asks again for roots or an issuer's keys that did not come
COUNT_MAX: Final = 2**53  # of any counter in a receipt: JSON numbers are exact up to it
LOG_SIZE_MAX: Final = COUNT_MAX  # entries

# The keys of the issuer whose tokens are accepted.
ISSUER_KEYS_AGE_S_MAX: Final = 5 * 60  # a key that the issuer has withdrawn is good for so much longer
ISSUER_KEYS_REFETCH_S_MIN: Final = 10  # between two reads for tokens that no known key fits, in one environment

# What one execution of the workflow may carry (docs/howto/step-functions.md).
WORKFLOW_STATE_BYTES_MAX: Final = 256 * KIB  # Step Functions' own limit, which ends an execution that grows over it
RUN_ID_CHARS_MAX: Final = 100  # a task's id is the run's with two numbers
RUN_TASKS_MAX: Final = 48  # their receipts are in the execution's output
RUN_SHARE_MAX: Final = 1_000
RUN_TASK_BYTES: Final = 4 * KIB + 512  # kept free in the output for each task: a receipt and its few fields
RUN_PLAN_BYTES_MAX: Final = (
    WORKFLOW_STATE_BYTES_MAX - RUN_TASK_BYTES
)  # beside it, headers of Lambda's answer are counted
RUN_PASSED_ON_BYTES_MAX: Final = 120 * KIB  # of an output that is another step's input, or one of few

# Money, in micro-credits.
BUDGET_MICRO_MAX: Final = 10**12
AMOUNT_MICRO_MAX: Final = 10**15  # of one deposit, withdrawal or tariff rate; DynamoDB numbers are exact far beyond
BPS: Final = 10_000  # basis points of a whole
FEE_BPS_MAX: Final = BPS

# What an agent may use.
FUEL_MAX: Final = 10**12
FUEL_PER_CPU_MS: Final = 10**7  # stated for a run that had to be killed: what real programs use in that time
OUTPUT_BYTES_MAX: Final = MIB
STDERR_BYTES_MAX: Final = 64 * KIB
MEMORY_BYTES_DEFAULT: Final = 256 * MIB
MEMORY_BYTES_MAX: Final = 1024 * MIB
TABLE_ELEMENTS_MAX: Final = 100_000
TIMEOUT_S_MIN: Final = 1
TIMEOUT_S_DEFAULT: Final = 10
TIMEOUT_S_SYNC_MAX: Final = 25
TIMEOUT_S_ASYNC_MAX: Final = 600
JUDGE_TIMEOUT_S_MAX: Final = 10  # two judges leave a task some of the time that its caller waits

# What an agent's author may upload, and what it costs to compile it.
MODULE_BYTES_MAX: Final = 50 * 10**6
ARTEFACT_BYTES_MAX: Final = 200 * 10**6
COMPILE_SECONDS_MAX: Final = 120  # of processor time
COMPILE_WALL_SECONDS_MAX: Final = 150  # the rest of the publisher's 180 s is for reading and storing
COMPILE_MEMORY_BYTES_MAX: Final = 3 * 1024 * MIB
UPLOAD_SECONDS_MAX: Final = 15 * 60
CACHED_ARTEFACT_BYTES_MAX: Final = 400 * MIB  # of the 512 MiB of an environment's /tmp: the largest artefact, twice

# The clock of one task.
EXPIRY_REFUND_MS_MAX: Final = 90_000  # no escrow is overdue for longer: the sweep runs every minute
ESCROW_GRACE_MS: Final = 90_000  # an escrow expires this long after the run must have ended: room for one takeover
CALL_MS_MAX: Final = 2_000  # of one call to DynamoDB, its time-outs together: none is begun later before the end
SETTLE_RESERVE_MS: Final = CALL_MS_MAX  # kept free at the end of an invocation, so that a run that ended can be settled
PAUSED_RETRY_S: Final = 60  # when to try again while funding is paused: nobody knows for how long that will be
SLOT_RETRY_S_MIN: Final = 2  # when to try again for a slot: when the first one lapses, within these bounds
SLOT_RETRY_S_MAX: Final = 30
SLOTS_MAX: Final = 100  # of one account: one read shows them all
SLOT_TRIES_MAX: Final = 4  # for slots that seem free and may be taken meanwhile
QUEUE_WAIT_MS_MAX: Final = 15 * 60_000  # of a task in the queue, beyond the time that its run may take
WORK_SECONDS_MAX: Final = 660  # of one invocation of the worker: the longest run, what goes with it, and a slow start
KILL_MARGIN_MS: Final = 200  # how long after its deadline a guest may still be alive before the parent kills it

# The queue of tasks.
QUEUE_MESSAGE_BYTES_MAX: Final = 128 * KIB  # a larger input goes to S3, for less: SQS bills 64 KiB, and takes 1 MiB
DEAD_LETTER_HIDDEN_S: Final = 15 * 60  # until a dead letter that nobody can read is tried, and told, once more

# The ledger.
OUTPUT_INLINE_BYTES_MAX: Final = KIB  # larger outputs go to S3: the whole item is paid for at each write of it
TRANSACTION_ITEMS_MAX: Final = 100  # DynamoDB's own limit
LOGGED_AGENTS_MAX: Final = 60  # of one batch of the log: their standings, 64 KiB each, go into one write of 4 MB
BATCH_GET_ITEMS_MAX: Final = 100  # DynamoDB's own limit
BOND_NOTICE_MS: Final = 4 * 60_000  # from the last retirement to a release: a publication that runs, and its sweep
BALANCE_SHARDS: Final = 16  # items over which an account's credits are spread; see ledger/balances.py

# The audit.
UNSWEPT_MS_MAX: Final = 15 * 60_000  # between settlement and credit: the sweep runs every minute, its alarm takes five
UNLOGGED_MS_MAX: Final = 15 * 60_000  # between credit and a place in the log
UNPUBLISHED_MS_MAX: Final = 30 * 60_000  # between credit and a checkpoint that covers the receipt
AUDIT_RECENT_MS: Final = 20 * 60_000  # what is older and final is not written any more: 15 min, and the clocks' skew
AUDIT_STANDINGS_MAX: Final = 24  # read in one transaction: with 64 KiB each well below its 4 MB

# Modules: counts that bound what checking, compiling and loading one can cost (see docs/sandbox.md for the bombs).
MODULE_FUNCTIONS_MAX: Final = 100_000
MODULE_BODY_BYTES_MAX: Final = 2 * MIB  # of the largest function: the compiler's cost grows faster than its length
MODULE_ITEMS_MAX: Final = 100_000  # types, globals, data segments, element segments: of each
MODULE_SECTIONS_MAX: Final = 1_000
MODULE_IMPORTS_MAX: Final = 1_000
MODULE_EXPORTS_MAX: Final = 10_000
MODULE_ELEMENT_BYTES_MAX: Final = 4 * MIB
MODULE_TYPE_VALUES_MAX: Final = 1_000  # the engine's own limit
MODULE_TABLES_MAX: Final = 4
MODULE_NAME_BYTES_MAX: Final = 64 * KIB  # of a function, an import, an export, a custom section

# The sandbox's worker.
LOAD_MS_MAX: Final = 5_000  # to start a worker and load an artefact; the guest's own time begins after it
WORKER_MODULE_BYTES_MAX: Final = 128 * MIB  # artefacts kept loaded; a single larger one is kept alone
WORKER_MODULES_MAX: Final = 64  # artefacts kept loaded, however small: each holds mappings, perhaps a descriptor
WORKER_RSS_BYTES_MAX: Final = 384 * MIB  # between two runs; above it the worker is replaced
WORKER_RUNS_MAX: Final = 10_000  # after so many the worker is replaced, so that no slow leak can add up
WORKER_DATA_BYTES_MAX: Final = MEMORY_BYTES_MAX + 2 * ARTEFACT_BYTES_MAX + WORKER_MODULE_BYTES_MAX + 256 * MIB
MESSAGE_CHARS_MAX: Final = 2_000  # of the sentence, with backtrace, that tells how a run ended
RANDOM_PIECE_BYTES: Final = 64 * KIB  # `random_get` makes its bytes in such pieces: what it holds of them is bounded
POLL_SUBSCRIPTIONS_MAX: Final = 64
IOVECS_MAX: Final = 1_024

# What a host call costs beside the instructions of the guest: see docs/adr/0019.
HOST_CALL_FUEL: Final = 10_000
HOST_BUFFER_FUEL: Final = 2_000  # each buffer of a list, each subscription of a poll
RANDOM_BYTE_FUEL: Final = 50
WAIT_FUEL_MAX: Final = 2_000  # a guest that uses more between two looks at the clock does not only wait

# What the rules of an output may be, and what it may cost to hold an output against them (see docs/acceptance.md).
SCHEMA_BYTES_MAX: Final = 16 * KIB  # in canonical JSON; the other rules are small by their form
ACCEPTANCE_STEPS_MAX: Final = 600_000  # of one side's rules: at most half a second of the platform's time
VERDICT_MS_MAX: Final = 3_000  # both sides' rules, compiled, and the output read: see the table of docs/acceptance.md
SCHEMA_DEPTH_MAX: Final = 200  # schemas applied inside one another: what waits for others is memory that no step counts
PATTERN_WEIGHT_MAX: Final = 1_000  # of all regular expressions of one schema, counted repetitions written out
PATTERN_BYTES_PER_STEP: Final = 64  # text times weight that the regular expression engine gets through in one step
NUMBER_CHARS_MAX: Final = 100  # of one JSON number that is read exactly
NUMBER_EXPONENT_MAX: Final = 400  # of one, when it is written with one digit before the point; a double's end at 308
SCORE_BYTES_MAX: Final = 64  # of what a judge prints
JUDGE_INPUT_BYTES_MAX: Final = 2 * (INPUT_BYTES_MAX + OUTPUT_BYTES_MAX) + 64  # JSON spells no byte with more than two
STDIN_BYTES_MAX: Final = JUDGE_INPUT_BYTES_MAX  # of any run: a task's input is smaller

# Webhooks.
WEBHOOK_URL_CHARS_MAX: Final = 2_000
WEBHOOK_CONNECT_MS_MAX: Final = 3_000
WEBHOOK_MS_MAX: Final = 10_000  # from the connection to the answer's status; then the connection is cut
WEBHOOK_ANSWER_BYTES_MAX: Final = 64 * KIB  # to the end of the final answer's headers, interim answers included
WEBHOOK_TRIES_MAX: Final = 15  # the queue's maxReceiveCount: crashes count too
WEBHOOK_WAIT_S_MIN: Final = 5  # before the second try; doubles with each
WEBHOOK_WAIT_S_MAX: Final = 60 * 60
WEBHOOK_AGE_MS_MAX: Final = 5 * 60 * 1_000  # how far a receiver's clock may be from the signature's time
EVENT_BYTES_MAX: Final = MIB  # EventBridge's own limit of the entries of one call (256 KiB before January 2026)

# Of a trace.
TRACE_STEPS_MAX: Final = 100  # of one invocation: a long sweep must not flood its trace
