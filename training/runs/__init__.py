"""What does a run leave on disk, how does it stop and resume, and how do several run at once?"""
