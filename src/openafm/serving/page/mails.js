// Mails to try the summary on; made up.

export const SAMPLES = [
  `From: Mara Lindqvist
To: Roof garden group
Subject: Re: Saturday

Hi all,

the hardware shop called: the boards for the raised beds only come on Thursday, so Saturday morning is too tight. Could we move the building day to Sunday the 14th, ten o'clock? Jonas brings the van and the saw, I bring soup.

Please answer by Wednesday evening whether you can make it. If we are fewer than four, we wait until the end of the month.

And the key to the roof hangs with the caretaker again, not with me.

Mara`,
  `From: Accounts, Tidewater Ferries
To: Pia Okonkwo
Subject: Your booking 48213

Dear Ms Okonkwo,

because of the storm warning for Friday, the 18:40 crossing is cancelled. We have moved you to the crossing on Saturday at 7:15; your cabin stays the same and costs you nothing more. If that does not suit you, change or cancel it free of charge until Friday noon on our website or at any counter.

We are sorry for the trouble.

Tidewater Ferries`,
  `From: Deniz
To: Team
Subject: Login errors this morning

Short account of this morning: from 8:10 to 8:55 about one login in five failed. A certificate of the session store had run out; the alarm for it went to a mailbox that nobody reads. Certificates are renewed, alarms now go to the on-call phone. No data was lost.

To do: Ana checks the other certificates until tomorrow, I write the longer report until Friday. Please tell support that customers need not change their passwords.

Deniz`,
];
