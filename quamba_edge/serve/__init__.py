"""One engine for many: jobs take turns (scheduler, engine), conversations keep their states (pool), and OpenAI's HTTP is a face
on that (openai, replies, app, server).  The Gradio demo uses the engine without HTTP."""
