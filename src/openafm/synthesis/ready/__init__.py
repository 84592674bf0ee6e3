"""Ready tasks: layouts of mails, chats and notifications, makers of data, and what answers are checked by.

`tasks` lists them, `task_data` reads a user's file of one (`openafm adapt BASE --task TASK --data FILE`).
"""
