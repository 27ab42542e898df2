"""Zero-shot tasks by lm-eval's conventions: rows of a file → prompts → tokens → scores → accuracies (docs/evaluation.md).

Each step is one file and knows only those before it: rows.py, prompts.py, tokens.py, scoring.py, results.py; run.py goes through
them.  What reads the tokens, a bundle's engine or a checkpoint in torch, is a Reader (reader.py).
"""
